"""Templates for orchestrators: an Airflow DAG and a Databricks job that run a pipeline every week."""
