"""Plots as text: scales, axes, marks and whole charts in SVG, without a dependency, a file or a clock."""
