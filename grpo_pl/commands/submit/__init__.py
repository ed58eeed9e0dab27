"""Jobs for SLURM: the templates of `tools/slurm/`, and `submit`, which fills one in."""
