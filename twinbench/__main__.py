"""python -m twinbench"""

from twinbench.cli import main

main()
