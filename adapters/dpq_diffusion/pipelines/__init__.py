"""Diffusers pipelines in memory: loading, classes and prompts, schedules, the reverse process."""
