"""What a run would take, before it runs: memory of each stage, disk, and the settings that would fix a lack."""
