"""``vtr search family``: schedules that are searched together, each on the prompts that choose it."""
