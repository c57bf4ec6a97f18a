"""MLflow: runs, registered students and data sets. The driver alone writes, from the trials' folders, idempotently."""
