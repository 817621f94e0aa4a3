"""What does a step cost, and where does the time of a run go? The measurements behind ci/bench."""
