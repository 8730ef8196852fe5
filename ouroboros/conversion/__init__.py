"""Model surgery: a pretrained decoder becomes prelude, a looped block of layers and coda."""
