"""Every number of the demo that is worth turning, in one place."""

from __future__ import annotations

# Depth at which the held-out loss and the speeds of the report are taken.
DEPTH = 8
MAX_DEPTH = 16

# A long coda: with 6 and 10 layers kept the converted model reads unseen text better than with 8
# and 8 (study/LOG.md).
PRELUDE, CODA, LAYERS = 6, 10, 30
CONVERT = {
    "--prelude": str(PRELUDE),
    "--coda": str(CODA),
    "--recurrent": "auto",
    "--rank": "32",
    "--max-depth": str(MAX_DEPTH),
    "--depth": str(DEPTH),
}

# What is trained on beside Wikipedia's passages, of recipes/corpora.toml: prose alone teaches code
# and technical writing little.
SOURCES = ("narrativeqa", "quac", "pubmedqa", "py-flask", "py-rich", "py-pytest")
CHARACTERS = 300_000  # of the passages, and of each kind

# Four minutes of two cores; half of the loss is the distance to the original's own distribution. A
# fixed number of steps, not of seconds: a run that ends by the clock could not be repeated or
# resumed exactly.
TRAIN = {
    "--depth": f"1-{MAX_DEPTH}",
    "--train-steps": "36",
    "--batch-size": "4",
    "--seq-len": "256",
    "--precision": "bf16",
    "--learning-rate": "1e-3",
    "--layer-learning-rate": "2e-4",
    "--train-coda": "full",
    "--train-recurrent": "full",
    "--eval-every": "18",
    "--save-every": "12",
}

# Held-out text: this many windows of this many tokens of each kind.
EVAL = {"--seq-len": "512", "--windows": "8"}

# A model of the same conversion that was trained for longer: a delta, which the original completes.
READY = "models/smollm2-135m-6-19-10"

# Depths at which text is generated, shown and compared.
DEPTHS = (1, 4, 8, 16)
NEW_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Water boils at a lower temperature on a mountain because",
    "The Roman Empire was",
    "def fibonacci(n):",
    "In the year 1969, the first people",
    "A good recipe for bread starts with",
    "The heart pumps blood through the body, and",
    "Once upon a time, in a village by the sea,",
)
SHOWN_PROMPT = PROMPTS[2]
READY_PROMPTS = (PROMPTS[2], PROMPTS[7])
SHOWN_TOKENS = 40
# The text shown is sampled, repeats made less likely: a model so small goes in circles.
SHOWN_SAMPLING = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 0}
