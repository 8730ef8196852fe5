"""Model surgery: a pretrained decoder becomes prelude, one looped layer and coda."""
