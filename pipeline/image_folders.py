"""The images of one folder, in order, each as RGB pixels: a video that somebody has already taken apart.

- Order: natural (frame2 before frame10); only the folder's own files with a suffix of IMAGE_SUFFIXES, no hidden ones.
- Colour: 8 bits a channel, RGB. An alpha channel is dropped, as the video decoder drops it; palettes and greys are
  spread to three channels; of 16-bit greys the upper 8 bits are taken; CMYK and the like as Pillow converts them.
  32-bit images have no agreed range of values and are refused.
- EXIF orientation is applied. Sizes may differ from image to image. Of an image with several pages, the first.
- An image of more than MAX_PIXELS is refused by its header, before anything is decoded.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import VideoError
from pipeline.ids import natural_key

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_PIXELS = 2**26  # 8192 x 8192: above 8K video, and a frame still takes only 200 MB as RGB

# Pillow's own limit lies above ours, so its warning would only double our refusal.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

EXIF_ORIENTATION = 0x0112
# Pillow's own exif_transpose rewrites all of the EXIF data, and stumbles over any damage in it.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED_ORIENTATIONS = (5, 6, 7, 8)  # those that swap width and height


def list_images(folder: str) -> list[str]:
    """Paths of the folder's images in natural order; VideoError if there are none or the folder cannot be read."""
    try:
        names = [entry.name for entry in Path(folder).iterdir() if entry.is_file()]
    except OSError as error:
        raise VideoError(f"the folder cannot be read: {error.strerror}") from error
    names = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
    if not names:
        raise VideoError("the folder holds no images")
    return [str(Path(folder, name)) for name in sorted(names, key=natural_key)]


def image_header(path: str) -> tuple[int, int, str]:
    """Width and height in pixels as shown (after EXIF orientation) and the format's name ("jpeg"); VideoError."""
    with _opened(path) as image:
        width, height = image.size
        if _orientation(image) in TURNED_ORIENTATIONS:
            width, height = height, width
        return width, height, (image.format or "").lower()


def read_image(path: str) -> np.ndarray:
    """The image's pixels, (H, W, 3) uint8 RGB, its own memory; VideoError names the image and what is wrong."""
    with _opened(path) as image:
        if image.mode in ("I", "F"):
            raise VideoError(f"image {Path(path).name} has 32 bits per pixel; save it with 8 or 16 bits")
        turned = image.transpose(TURNS[orientation]) if (orientation := _orientation(image)) in TURNS else image
        if turned.mode.startswith("I;16"):
            grey = (np.asarray(turned) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if turned.mode in ("P", "PA"):  # a palette may hold transparency, which RGB alone cannot take up
            turned = turned.convert("RGBA")
        return np.array(turned.convert("RGB"))


def _orientation(image: Image.Image) -> object:
    return image.getexif().get(EXIF_ORIENTATION)


def check_pixels(width: int, height: int, what: str) -> None:
    """VideoError if a picture of this size is larger than framebank reads."""
    if width * height > MAX_PIXELS:
        raise VideoError(f"{what} has {width}×{height} pixels; framebank reads up to {MAX_PIXELS:,} pixels per frame")


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    name = Path(path).name
    try:
        with Image.open(path) as image:
            check_pixels(*image.size, f"image {name}")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoError(f"image {name} has too many pixels; framebank reads up to {MAX_PIXELS:,}") from error
    except VideoError:
        raise
    except Exception as error:
        # What Pillow's format readers raise on damaged files; the words of the error are of no use to most people.
        why = error.strerror if isinstance(error, OSError) and error.strerror else "the file is damaged or incomplete"
        raise VideoError(f"image {name} cannot be read: {why}") from error
