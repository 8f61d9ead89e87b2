"""A compact engine with the part of Detectron2's API that this collection uses."""

import os

os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"  # OpenCL in dataloader workers hangs or is slow

__version__ = "0.6"
EMBEDDED = True  # upstream has no such name: a log can say which engine ran
