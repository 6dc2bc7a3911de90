"""Forms of secrets that tests plant: texts as people and libraries write them, and the part that must stay secret.

The values are made up and put together here, so that a scanner of repositories takes none of them for a leaked one.
"""

import base64
import json
from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True)
class Form:
    """One form of a secret.

    Attributes:
        name: The form, in words.
        text: A text with the secret in it.
        secrets: The parts of the text that must stay secret.
    """

    name: str
    text: str
    secrets: tuple[str, ...]

    def found_in(self, text: str) -> list[str]:
        """Return the secrets that ``text`` tells: as they are, as in JSON, and as in an address."""
        return [
            secret
            for secret in self.secrets
            if any(spelled in text for spelled in (secret, json.dumps(secret)[1:-1], quote(secret, safe="")))
        ]


def _word(name: str, length: int = 32, alphabet: str = "abcdefghkmnpqrstuvwxyz23456789ABCDEFGHKMNPQRSTUVWXYZ") -> str:
    """Return letters and digits that are the same for a name in every process, and no other name's."""
    number = int.from_bytes(name.encode().ljust(64, b"."), "big") * 0x9E3779B97F4A7C15
    letters = []
    for _ in range(length):
        number, digit = divmod(number * 31 + 7, len(alphabet))
        letters.append(alphabet[digit])
    return "".join(letters)


def _base64(name: str, octets: int) -> str:
    return base64.b64encode(_word(name, octets).encode()).decode()


def _form(name: str, text: str, *secrets: str) -> Form:
    """Return a form; ``{0}``, ``{1}`` in ``text`` are its secrets."""
    for place, secret in enumerate(secrets):
        text = text.replace(f"{{{place}}}", secret)
    return Form(name, text, secrets)


_KEY_LINES = [_base64(f"line {number}", 48) for number in range(4)]
_BEGIN, _END = (f"-----{edge} RSA {'PRIVATE'} KEY-----" for edge in ("BEGIN", "END"))
_PEM = "\n".join([_BEGIN, *_KEY_LINES, _END])
_JWT = ".".join(
    base64.urlsafe_b64encode(part.encode()).decode().rstrip("=")
    for part in ('{"alg":"HS256","typ":"JWT"}', f'{{"sub":"{_word("subject", 12)}"}}', _word("signature"))
)
_HEX = "0123456789abcdef"

FORMS: tuple[Form, ...] = (
    _form("user and password of a server", "GET http://ann:{0}@tracking.example:5000/api refused", _word("http")),
    _form(
        "password with signs in a database's address", "postgresql+psycopg2://ann:{0}@db:5432/x", "p@ss/" + _word("pg")
    ),
    _form("encoded password in an address", "mysql+pymysql://ann:{0}@db/x", "p%40ss%2F" + _word("my")),
    _form(
        "keys of S3 in an address",
        "s3://{0}:{1}@bucket/rows",
        "AK" + "IA" + _word("s3", 16).upper(),
        _word("s3 key", 40),
    ),
    _form("token as the user of an address", "fatal: https://{0}@git.example/models.git not found", _word("git")),
    _form(
        "password of JDBC", "No suitable driver: jdbc:mysql://db:3306/x?user=ann&password={0}&ssl=true", _word("jdbc")
    ),
    _form("user and password of Oracle's JDBC", "jdbc:oracle:thin:ann/{0}@//db:1521/x", _word("oracle")),
    _form(
        "password in braces", "jdbc:sqlserver://db;user=ann;password={{0}};encrypt=true", _word("a") + ";" + _word("b")
    ),
    _form(
        "encoded connection string", "mssql+pyodbc:///?odbc_connect=UID%3Dann%3BPWD%3D{0}%3BServer%3Ddb", _word("odbc")
    ),
    _form("signature of a SAS", "sv=2022-11-02&ss=b&sp=rl&sig={0}", quote(_base64("sas", 32), safe="")),
    _form(
        "address with a SAS",
        "https://a.blob.core.windows.net/c/f?sp=r&sig={0}&sr=b 403",
        quote(_base64("blob", 32), safe=""),
    ),
    _form(
        "option with a SAS",
        "fs.azure.sas.c.a.blob.core.windows.net=sv=2022&sig={0}",
        quote(_base64("sas 2", 32), safe=""),
    ),
    _form("connection string of Azure", "AccountName=a;AccountKey={0};EndpointSuffix=core", _base64("azure", 64)),
    _form("id of a key of AWS", "InvalidAccessKeyId: {0} does not exist", "AS" + "IA" + _word("aws id", 16).upper()),
    _form("key of AWS", "aws_secret_access_key = {0}", _base64("aws key", 30)),
    _form("session token of AWS", '{"SessionToken": "{0}"}', _base64("session", 90)),
    _form("security token in a header", "x-amz-security-token: {0}", _base64("header", 90)),
    _form(
        "presigned address",
        "https://b.s3.amazonaws.com/f?X-Amz-Credential={0}%2Feu&X-Amz-Signature={1}",
        "AK" + "IA" + _word("presigned", 16).upper(),
        _word("signature", 64, _HEX),
    ),
    _form(
        "signed header of AWS",
        "Authorization: AWS4-HMAC-SHA256 Credential={0}/20261123/eu/s3/aws4_request, SignedHeaders=host, Signature={1}",
        "AK" + "IA" + _word("signed", 16).upper(),
        _word("sigv4", 64, _HEX),
    ),
    _form(
        "key file of GCP",
        json.dumps({"type": "service_account", "private_key": _PEM + "\n", "client_email": "a@b"}),
        *_KEY_LINES,
    ),
    _form("private key", f"cannot parse\n{_PEM}\nas a certificate", *_KEY_LINES),
    _form("encrypted private key on one line", _PEM.replace("RSA", "ENCRYPTED").replace("\n", "\\n"), *_KEY_LINES),
    _form("key of Google's services", "API key not valid: {0}", "AI" + "za" + _word("google", 35)),
    _form(
        "token of Databricks", "403 for token {0}: Invalid access token", "da" + "pi" + _word("databricks", 32, _HEX)
    ),
    _form("token of GitHub", "remote: {0} has no access", "gh" + "p_" + _word("github", 36)),
    _form("fine-grained token of GitHub", "401 {0}", "github" + "_pat_" + _word("pat", 22) + "_" + _word("pat 2", 59)),
    _form("token of GitLab", "git clone with {0}", "gl" + "pat-" + _word("gitlab", 20)),
    _form("token of Slack", "invalid_auth for {0}", "xo" + "xb-" + "1234567890-" + _word("slack", 24)),
    _form(
        "webhook of Slack",
        "https://hooks.slack.com/services/{0} 404",
        "T0" + _word("t", 8).upper() + "/B0" + _word("b", 8).upper() + "/" + _word("hook", 24),
    ),
    # Webhooks: whoever knows the address may write.
    *(
        _form(f"webhook of {service}", f"POST {address} failed", *(_word(f"{service} {n}", 26) for n in range(parts)))
        for service, address, parts in (
            ("Slack's workflows", "https://hooks.slack.com/workflows/{0}/{1}", 2),
            ("Teams", "https://corp.webhook.office.com/webhookb2/{0}@{1}/IncomingWebhook/{2}/{3}", 4),
            ("Teams before", "https://outlook.office.com/webhook/{0}@{1}/IncomingWebhook/{2}", 3),
            (
                "Teams by Power Automate",
                "https://prod-07.westeurope.logic.azure.com:443/workflows/{0}/triggers/manual/paths/invoke"
                "?api-version=2016-06-01&sp=%2Ftriggers&sv=1.0&sig={1}",
                2,
            ),
            ("Discord", "https://discord.com/api/webhooks/112233445566778899/{0}", 1),
            ("Discord before", "https://ptb.discordapp.com/api/v10/webhooks/112233445566778899/{0}?wait=true", 1),
            ("Google Chat", "https://chat.googleapis.com/v1/spaces/AAAA/messages?key={0}&token={1}", 2),
            ("PagerDuty", "https://events.pagerduty.com/integration/{0}/enqueue", 1),
            ("PagerDuty in Europe", "https://events.eu.pagerduty.com/x-ere/{0}", 1),
            ("VictorOps", "https://alert.victorops.com/integrations/generic/20131114/alert/{0}/team", 1),
            ("Opsgenie", "https://api.opsgenie.com/v1/json/integrations?apiKey={0}", 1),
            ("Telegram", "https://api.telegram.org/bot123456789:{0}/sendMessage?chat_id=5", 1),
            ("Zapier", "https://hooks.zapier.com/hooks/catch/123456/{0}/", 1),
            ("IFTTT", "https://maker.ifttt.com/trigger/failed/with/key/{0}", 1),
            ("Make", "https://hook.eu1.make.com/{0}", 1),
            ("Feishu", "https://open.feishu.cn/open-apis/bot/v2/hook/{0}", 1),
            ("DingTalk", "https://oapi.dingtalk.com/robot/send?access_token={0}", 1),
            ("WeCom", "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key={0}", 1),
            ("Webex", "https://webexapis.com/v1/webhooks/incoming/{0}", 1),
            ("Healthchecks", "https://hc-ping.com/{0}/fail", 1),
            ("Mattermost", "https://chat.corp.example/hooks/{0}", 1),
            ("Rocket.Chat", "https://rocket.corp.example/hooks/64b7/{0}", 1),
        )
    ),
    # Parameters of addresses.
    *(
        _form(f"parameter {name}", f"GET https://api.example/v1?a=1&{name}={{0}}&b=2 403", _word(f"parameter {name}"))
        for name in (
            *(
                "key",
                "sig",
                "signature",
                "code",
                "token",
                "access_token",
                "accessToken",
                "api_key",
                "apikey",
                "api-key",
            ),
            *("auth", "authkey", "id_token", "sas", "pass", "pwd", "hapikey", "subscription-key", "X-Goog-Signature"),
        )
    ),
    _form("parameter in HTML", '<a href="/f?a=1&amp;key={0}&amp;b=2">', _word("html")),
    _form("parameter in an encoded address", "/login?next=https%3A%2F%2Fx%2Ff%3Fkey%3D{0}%26b", _word("encoded")),
    # Variables and settings by the end of their names.
    *(
        _form(f"variable {name}", f"{name}={{0}} python train.py", _word(f"variable {name}"))
        for name in (
            *(
                "REDIS_AUTH",
                "MYSQL_PASSWD",
                "FTP_PW",
                "NPM_AUTH",
                "SENTRY_DSN",
                "CONTAINER_SAS",
                "AZURE_DEVOPS_EXT_PAT",
            ),
            *("WIFI_PSK", "DB_CONN_STR", "DB_CONNSTR", "STORE_CREDENTIAL", "ALERT_WEBHOOK", "TEAMS_WEBHOOK_URL"),
            *("PAGERDUTY_ROUTING_KEY", "SECRET_KEY_BASE", "AZURE_FUNCTIONS_KEY", "APPINSIGHTS_INSTRUMENTATIONKEY"),
        )
    ),
    _form("setting of redis", "redis_auth: {0}", _word("redis auth")),
    _form(
        "event of PagerDuty", json.dumps({"routing_key": _word("routing"), "event_action": "trigger"}), _word("routing")
    ),
    _form("connection string of .NET", '"ConnectionStrings": "{0}"', _word("dotnet")),
    _form("connection string of Service Bus", "Endpoint=sb://a/;SharedSecretValue={0};X=1", _word("service bus")),
    # Headers.
    *(
        _form(f"header {name}", f"> {name}: {{0}}", _word(f"header {name}"))
        for name in ("Private-Token", "Job-Token", "X-Vault-Token", "Ocp-Apim-Subscription-Key", "x-functions-key")
    ),
    _form("authorization of Opsgenie", "Authorization: GenieKey {0}", _word("genie")),
    # Issued.
    _form("key of Stripe", "No such charge for {0}", "sk" + "_live_" + _word("stripe", 24)),
    _form("key of SendGrid", "401 {0}", "S" + "G." + _word("sendgrid", 22) + "." + _word("sendgrid 2", 43)),
    _form("token of Vault", "denied: {0}", "hv" + "s." + _word("vault", 24)),
    _form("token of Grafana", "denied: {0}", "gl" + "sa_" + _word("grafana", 32)),
    _form("token of Slack's apps", "denied: {0}", "xa" + "pp-1-A0-" + _word("xapp", 32)),
    _form("token of npm", "denied: {0}", "np" + "m_" + _word("npm", 36)),
    _form("token of Google's OAuth", "denied: {0}", "ya" + "29." + _word("ya29", 40)),
    _form("token of Hugging Face", "Invalid user token {0}.", "h" + "f_" + _word("hugging", 34)),
    _form("key of OpenAI", "Incorrect API key provided: {0}.", "s" + "k-proj-" + _word("openai", 40)),
    _form("bearer token", "{'Authorization': 'Bearer {0}'}", _word("bearer")),
    _form("short bearer token in a header", "authorization: Bearer {0}", _word("short", 6)),
    _form("JSON web token", "token expired: {0}", _JWT),
    _form("basic authentication", "Proxy-Authorization: Basic {0}", _base64("basic", 24)),
    _form(
        "digest authentication",
        'Authorization: Digest username="ann", realm="x", response="{0}"',
        _word("digest", 32, _HEX),
    ),
    _form("key in a header", "> X-Api-Key: {0}", _word("api key")),
    _form("token in an address", "GET /rows?token={0}&page=2", _word("query")),
    _form("value with spaces", "cannot log in with password='{0}'", f"{_word('correct', 8)} {_word('horse', 8)}"),
    _form(
        "value with a quote",
        json.dumps({"password": f'{_word("before", 8)}"{_word("after", 8)}'}),
        _word("before", 8),
        _word("after", 8),
    ),
    _form(
        "representation of a tuple",
        "[('spark.app.name', 'x'), ('spark.hadoop.fs.s3a.secret.key', '{0}')]",
        _word("tuple"),
    ),
    _form("XML of Hadoop", "<property><name>fs.s3a.secret.key</name><value>{0}</value></property>", _word("xml")),
    _form("key of Spark's S3", "spark.hadoop.fs.s3a.secret.key={0}", _base64("s3a", 30)),
    _form("option with spaces", "spark.hadoop.fs.s3a.session.token   {0}", _base64("s3a session", 60)),
    _form("password of Spark's TLS", "spark.ssl.keyStorePassword={0}", _word("keystore")),
    _form("password of Java", "-Djavax.net.ssl.trustStorePassword={0}", _word("truststore")),
    _form("flag", "psql --host db --password {0} --quiet", _word("flag")),
    _form("flag in a list", "Command '['psql', '--password', '{0}']' returned status 2", _word("list")),
    _form("client secret of OAuth", "grant_type=client_credentials&client_secret={0}&scope=x", _word("oauth")),
    _form("line of YAML", "token:\n  api_key: {0}\n", _word("yaml")),
    _form(
        "OAuth secret of Azure",
        "fs.azure.account.oauth2.client.secret.a.dfs.core.windows.net={0}",
        _word("oauth2") + "~",
    ),
    _form(
        "OAuth secret of Azure after blanks",
        "spark.hadoop.fs.azure.account.oauth2.client.secret.a.dfs.core.windows.net   {0}",
        _word("oauth2 blanks") + "~",
    ),
    _form(
        "OAuth secret of Azure in a tuple",
        "[('fs.azure.account.oauth2.client.secret.a.dfs.core.windows.net', '{0}')]",
        _word("oauth2 tuple") + "~",
    ),
    _form("token for Spark's executors", "spark.executorEnv.DATABRICKS_TOKEN={0}", _word("executor token")),
    _form("token variable", "HF_TOKEN={0} python train.py", _word("token variable")),
    _form("exported token", "export DATABRICKS_TOKEN={0}", _word("exported token")),
    _form("password variable without a separator", "DBPASS={0} psql", _word("dbpass")),
    _form("bytes", "password=b'{0}'", _word("bytes")),
    _form("header with bytes", "{'X-Api-Key': b'{0}'}", _word("header bytes")),
    _form("basic authentication in bytes", "{b'Authorization': b'Basic {0}'}", _base64("basic bytes", 24)),
    _form("tuple without blanks", "[('PGPASSWORD','{0}')]", _word("tight tuple")),
    _form("tuple of Scala", "Array((spark.app.name,x), (spark.hadoop.fs.s3a.secret.key,{0}))", _base64("scala", 30)),
    _form("map of Scala", "Map(user -> ann, password -> {0})", _word("scala map")),
    _form("hash of Ruby", "{:password => '{0}'}", _word("ruby")),
    _form("element of XML", "<server><password>{0}</password></server>", _word("xml element")),
    _form("text of TOML", "password = '''{0}'''", _word("toml 1", 8) + "'" + _word("toml 2", 8)),
    _form(
        "JSON three levels deep",
        json.dumps(json.dumps(json.dumps({"password": f'{_word("deep 1", 8)}"{_word("deep 2", 8)}', "user": "ann"}))),
        _word("deep 1", 8),
        _word("deep 2", 8),
    ),
    # Last: its value ends with the line.
    _form("cookie", "Cookie: session={0}; csrftoken={1}", _word("cookie"), _word("csrf")),
)

# Environment variables of a test; an error may contain the value alone.
VARIABLES: dict[str, str] = {
    "MLFLOW_TRACKING_PASSWORD": _word("tracking password"),
    "AWS_SECRET_ACCESS_KEY": _base64("variable key", 30),
    "AWS_SESSION_TOKEN": _base64("variable session", 90),
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={_base64('variable azure', 64)};EndpointSuffix=core",
    "DATABRICKS_TOKEN": _word("variable databricks"),
    "HF_TOKEN": _word("variable hugging"),
    "RIDES_DATABASE": f"postgresql://reader:{quote('p@ss/' + _word('variable pg'), safe='')}@db:5432/rides",
    "SMTP_PASS": _word("variable mail"),
    "REDIS_AUTH": _word("variable redis"),
    "SENTRY_DSN": f"https://{_word('variable sentry')}@o1.ingest.example/4",
    "CONTAINER_SAS": f"sv=2022-11-02&sig={_word('variable sas')}",
    "TEAMS_WEBHOOK_URL": f"https://flow.example/{_word('variable teams')}",
    "SIGNING_PRIVATE_KEY": "\n".join([_BEGIN, *(_base64(f"variable line {number}", 48) for number in range(3)), _END]),
}


def in_one_line() -> str:
    """Return the texts of all forms as one message, of one line."""
    return " | ".join(" ".join(form.text.splitlines()) for form in FORMS)
