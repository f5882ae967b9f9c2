"""Rescalings of positively homogeneous networks, found by tracing, and their balanced representatives."""

from ._action import Rescaling, rescaling
from ._network import NetworkReport, network
from ._plots import network_plot

__all__ = ["NetworkReport", "Rescaling", "network", "network_plot", "rescaling"]
