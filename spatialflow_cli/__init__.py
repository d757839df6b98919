"""The command ``spatialflow``: its arguments, and its doctor.

Importing :mod:`spatialflow` registers models, which imports PyTorch and Detectron2. This package
imports the standard library only, so that ``--help`` is quick and the doctor starts where they are
missing. A command imports its work, a module of :mod:`spatialflow.cli`, when it runs.
"""
