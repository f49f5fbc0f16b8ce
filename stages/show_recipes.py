"""The recipes that come with framebank: what there is, and what one says."""

from pathlib import Path

from pipeline.recipes import find, names, read_recipe


def overview(folder: Path) -> list[str]:
    """The lines of a list of all recipes in a folder: name, summary, and below it the source."""
    recipes = [read_recipe(find(name, folder), folder) for name in names(folder)]
    width = max(len(recipe.name) for recipe in recipes)
    return [
        line
        for recipe in recipes
        for line in (f"{recipe.name:<{width}}  {recipe.summary}", f"{'':<{width}}  {recipe.source}")
    ]


def text(which: str, folder: Path) -> str:
    """The file of a recipe as it is.

    Raises:
        UserError: there is no such recipe, or what is there is none.
    """
    path = find(which, folder)
    read_recipe(path, folder)
    return path.read_text("utf-8")
