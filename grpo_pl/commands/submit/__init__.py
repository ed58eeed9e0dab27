"""Jobs for SLURM: the templates beside this file, and `submit`, which fills one in."""
