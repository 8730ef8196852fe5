"""The graph: parts in the form that runs fast, traced and stitched around one Loop."""
