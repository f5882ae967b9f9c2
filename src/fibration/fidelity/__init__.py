"""Fidelity: how closely a descent follows its flow."""

from ._distance import distance, distance_from_start

__all__ = ["distance", "distance_from_start"]
