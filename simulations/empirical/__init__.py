"""`confed audit empirical`: attacks on the product's own training step, in three tiers."""
