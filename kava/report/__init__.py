"""The A/B report: statistics, verdict, charts and one self-contained page, made from the files of finished runs."""
