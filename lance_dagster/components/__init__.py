"""The Dagster face of one experiment."""

import warnings

import dagster as dg

# Dagster 1.13 converts definitions of checks with a beta parameter of its own and warns about that, on every load.
warnings.filterwarnings(
    "ignore", message="Parameter `execution_type` of function `AssetsDefinition", category=dg.BetaWarning
)
