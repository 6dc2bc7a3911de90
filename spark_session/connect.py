"""Sessions of Spark Connect, whose driver is a server."""

from mirrorspark.spark_session.connect_jobs import JobsOverConnect

USE_CLASSIC = (
    "use a classic one: local[N], spark://, yarn or k8s:// as .master(...) in place of .remote(...), with the driver "
    "where this program runs"
)


class ConnectSession(JobsOverConnect):
    """A session of Spark Connect."""

    kind = "Spark Connect"
    remedy = USE_CLASSIC

    @property
    def master(self) -> str:
        """URL of the server's cluster."""
        return self.setting("spark.master")

    @property
    def is_local(self) -> bool:
        """False: the tasks have neither this process's files nor its packages for sure."""
        return False

    def setting(self, name: str, default: str = "") -> str:
        """Return a setting of the session, or of the server."""
        return str(self._spark.conf.get(name, default))
