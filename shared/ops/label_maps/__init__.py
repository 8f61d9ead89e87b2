from shared.ops.label_maps.op import render_label_maps
from shared.ops.label_maps.reference import dense_label_maps, render_label_maps_reference
