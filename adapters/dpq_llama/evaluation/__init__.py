"""What a language model is worth: perplexity, tasks of lm-eval, generated text."""
