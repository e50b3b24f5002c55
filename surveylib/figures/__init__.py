"""The book's one visual language. Draws plain arrays and tensors; knows nothing of the rest of the library.

Still: `curves`, `draw_curves`, `Plot`, `PictureGrid`. Movable without a kernel: `Scrubber`, `SliderGrid`,
`BeforeAfter`, `LinePlotSlider`, `SortableTable`, `ScatterChooser`. Colours: `colours`, one meaning each.
"""

from . import colours
from .lines import Curve, LinePlotSlider
from .movable import BeforeAfter, Figure, PictureGrid, Scrubber, SliderGrid
from .pictures import data_address, tile, to_array, to_png
from .plots import STYLE, Plot, curves, draw_curves, label_ends, new_axes, use
from .scatter import Point, ScatterChooser
from .sortable import SortableTable

__all__ = ["STYLE", "BeforeAfter", "Curve", "Figure", "LinePlotSlider", "PictureGrid", "Plot", "Point",
           "ScatterChooser", "Scrubber", "SliderGrid", "SortableTable", "colours", "curves", "data_address",
           "draw_curves", "label_ends", "new_axes", "tile", "to_array", "to_png", "use"]
