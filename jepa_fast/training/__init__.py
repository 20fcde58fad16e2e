"""Training: the step, the schedules, the loop and its checkpoints."""
