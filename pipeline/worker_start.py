"""What a worker process of our own loads as it starts, before it is asked for anything."""

from pipeline.loading import loading

with loading():
    import pipeline.worker  # noqa: F401
