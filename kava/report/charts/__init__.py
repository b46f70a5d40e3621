"""The charts, as Vega-Lite specifications made with Altair."""
