"""Training on Lightning: settings, data loaders, the module, callbacks, run directories. No model names inside.

Importing this package is light; `vssm.train.run_dir` needs the standard library only.
"""
