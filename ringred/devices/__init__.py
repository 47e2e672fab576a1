"""Arrays on GPUs, for collectives that work in host memory: whose they are, and how they get there and back."""
