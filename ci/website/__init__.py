"""From the chapters to the website: run what changed, stage, render, check."""
