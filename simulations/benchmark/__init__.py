"""`confed benchmark`: the timings that Confed claims, each beside its comparison, in one run."""
