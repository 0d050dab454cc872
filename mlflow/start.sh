#!/usr/bin/env bash
# A local MLflow server on SQLite, for one machine: ./mlflow/start.sh [port] [directory]
set -euo pipefail
port=${1:-5000}
store=$(mkdir -p "${2:-.lori/mlflow}" && cd "${2:-.lori/mlflow}" && pwd)
database="sqlite:///$store/mlflow.db"  # three slashes and an absolute path

export MLFLOW_DISABLE_TELEMETRY=true              # the literal: MLflow does not take 1
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false   # the job runner would take 2.4 GB that nothing here uses

# Tables before the first client: several that make them at once break each other
mlflow db upgrade "$database"
echo "MLflow: http://127.0.0.1:$port/#/experiments?workflowType=machine_learning"
echo "Use it: export MLFLOW_TRACKING_URI=http://127.0.0.1:$port"
exec mlflow server --backend-store-uri "$database" --artifacts-destination "$store/artifacts" \
  --host 127.0.0.1 --port "$port" --workers 1
