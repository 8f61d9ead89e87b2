"""Optimal transport between the channels of two feature maps: Sinkhorn's iteration as a loss."""

from .op import sinkhorn, sinkhorn_divergence
from .reference import cosine_cost, sinkhorn_divergence_reference, sinkhorn_reference
