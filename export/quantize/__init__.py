"""Integer weights: chosen, calibrated, and what stays as it was."""
