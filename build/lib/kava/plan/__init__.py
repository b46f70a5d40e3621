"""What a run would take, before it runs: memory of each stage, disk, and the settings that would mend a lack."""
