"""The course's machinery: what only the notebooks, their checks and their widgets need."""

from .alt import in_notebooks

in_notebooks()
