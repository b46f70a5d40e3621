"""The stages of the pipeline, one file per Snakemake rule; nothing imports from here but the command line."""
