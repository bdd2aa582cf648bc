"""Starting the processes of a run, and telling what a machine offers them.

`environment`: what the starter's variables say; `local`: the processes of one node; `job`: those of a Slurm job;
`submit` and `status`, `stop`, `output`: jobs from outside; `doctor`: what is installed and used. Nothing here imports
torch before it must: the launcher only starts and watches.
"""
