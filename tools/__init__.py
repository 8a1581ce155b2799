"""What developers run, as modules from the checkout's root: python -m tools.bench, python -m tools.prove. The
folder convert is another package, which is installed as pyllm.tools."""
