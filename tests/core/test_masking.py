"""Secrets on command lines: what is hidden, and what is shown whole. Two tables, with what people get to see of each."""

from __future__ import annotations

import os
import socket
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.agent_protocol.frames import Process
from autoforward.core.masking.command_line import MAX_COMMAND_LINE, mask_command_line
from autoforward.detection.owners import MAX_SHELL_COMMAND, parse_process
from autoforward.lanes.watcher_protocol import Owner
from autoforward.net.bound_pair import owners_of_ports

pytestmark = pytest.mark.unit

S = "hunter2Xq9"
"""The secret of most rows."""

SECRETS: list[tuple[list[str], str, tuple[str, ...]]] = [
    # arguments, what is shown, and the secrets in them
    (["psql", f"postgres://u:p@{S}/w@db/app"], "psql postgres://u:***@db/app", (f"p@{S}/w", S)),
    (["app", f"--db=mysql://root:{S}@h:3306/x?ssl=1"], "app --db=mysql://root:***@h:3306/x?ssl=1", (S,)),
    (["git", "clone", f"https://{S * 4}@github.com/a/b"], "git clone https://***@github.com/a/b", (S,)),
    (["gost", "-L", f"admin:{S}@:8080"], "gost -L admin:***@:8080", (S,)),
    (["redis-server", "--requirepass", S, "--port", "7000"], "redis-server --requirepass *** --port 7000", (S,)),
    (["redis-cli", "-a", S, "ping"], "redis-cli -a *** ping", (S,)),
    (["mysql", "-uroot", f"-p{S}", "shop"], "mysql -uroot -p*** shop", (S,)),
    (["sh", "-c", f"exec /usr/bin/mysqldump -p'{S} x' shop"], "sh -c exec /usr/bin/mysqldump -p*** shop", (S, "x'")),
    (["sshpass", "-p", S, "ssh", "h"], "sshpass -p *** ssh h", (S,)),
    (["docker", "login", "-u", "me", "-p", S], "docker login -u me -p ***", (S,)),
    ([f"DBPASS={S}", "server"], "DBPASS=*** server", (S,)),
    (["env", f"db_url={S}", "node", "x.js"], "env db_url=*** node x.js", (S,)),
    (["sh", "-c", f"STRIPE={S} node x.js"], "sh -c STRIPE=*** node x.js", (S,)),
    (["docker", "run", "-e", f"lowercase={S}", "img"], "docker run -e lowercase=*** img", (S,)),
    (["docker", "run", f"--env=FOO={S}", "img"], "docker run --env=FOO=*** img", (S,)),
    (["java", f"-DSTORE={S}", "-jar", "a.jar"], "java -DSTORE=*** -jar a.jar", (S,)),
    (["java", f"-Djavax.net.ssl.keyStorePassword={S}"], "java -Djavax.net.ssl.keyStorePassword=***", (S,)),
    (["kubectl", "create", f"--from-literal=user={S}"], "kubectl create --from-literal=user=***", (S,)),
    (["azcopy", f"https://a.blob.core/x?sv=2020&sig={S}%3D"], "azcopy https://a.blob.core/x?sv=2020&sig=***", (S,)),
    (["app", f"Endpoint=sb://x/;SharedAccessKey={S}="], "app Endpoint=sb://x/;SharedAccessKey=***", (S,)),
    (["app", f"DefaultEndpointsProtocol=https;AccountKey={S}=="], "app DefaultEndpointsProtocol=https;AccountKey=***", (S,)),
    (["app", f"SharedAccessSignature=sv=1&sig={S}"], "app SharedAccessSignature=***", (S,)),
    (["app", f"Server=db;User=sa;Password={S} y;Encrypt=1"], "app Server=db;User=sa;Password=***", (S,)),
    (["sqlcmd", f"Server=db;Pwd={S}"], "sqlcmd Server=db;Pwd=***", (S,)),
    (["app", "--jwt", S], "app --jwt ***", (S,)),
    (["app", "--apiKey", f"-{S}"], "app --apiKey ***", (S,)),
    (["app", "--password", f"my {S} phrase", "--port", "80"], "app --password *** --port 80", (S, "phrase")),
    (["app", f"--password=my {S} phrase"], "app --password=***", (S, "phrase")),
    (["curl", "-H", f"Authorization: Bearer {S}"], "curl -H Authorization: Bearer ***", (S,)),
    (["curl", "-H", "Authorization: Basic dTpwYXNzd29yZA=="], "curl -H Authorization: Basic ***", ("dTpwYXNzd29yZA",)),
    (["curl", "-H", f"Authorization: AWS4 a={S}, b={S}"], "curl -H Authorization: ***", (S,)),
    (["curl", "-H", f"X-Api-Key: {S}"], "curl -H X-Api-Key: ***", (S,)),
    (["curl", "-H", f"Cookie: a=1; sid={S}"], "curl -H Cookie: ***", (S,)),
    (["curl", "-u", f"me:{S}", "http://h/"], "curl -u me:*** http://h/", (S,)),
    (["curl", f"--user=me:{S}"], "curl --user=me:***", (S,)),
    (["curl", "-d", f'{{"password": "{S}", "a": 1}}'], 'curl -d {"password": ***, "a": 1}', (S,)),
    (["sh", "-c", f'curl -H "X-Token: {S} z" http://h/'], 'sh -c curl -H "X-Token: ***" http://h/', (S, " z")),
    (["openssl", "s_server", "-passin", f"pass:{S}"], "openssl s_server -passin ***", (S,)),
    (["ngrok", "config", "add-authtoken", S], "ngrok config add-authtoken ***", (S,)),
    (["ttyd", "-c", f"me:{S}", "bash"], "ttyd -c *** bash", (S,)),
    (["bot", f"ghp_{S * 4}"], "bot ***", (S,)),
    (["bot", f"github_pat_{S * 4}"], "bot ***", (S,)),
    (["bot", f"--x=gho_{S * 4}"], "bot --x=***", (S,)),
    (["bot", f"glpat-{S * 2}"], "bot ***", (S,)),
    (["bot", f"sk-ant-api03-{S * 2}"], "bot ***", (S,)),
    (["bot", f"sk-{'a' * 24}"], "bot ***", ("a" * 24,)),
    (["bot", f"xoxb-123-{S}"], "bot ***", (S,)),
    (["bot", "AKIAIOSFODNNQEXAMPLE", "ASIAIOSFODNNQEXAMPLE"], "bot *** ***", ("IOSFODNN",)),
    (["bot", f"AIza{S * 3}"], "bot ***", (S,)),
    (["bot", f"eyJhbGciOiJIUzI1NiJ9.{S}.{S}"], "bot ***", (S, "hbGciOi")),
    (["bot", f"npm_{S * 3}", f"pypi-AgE{S * 3}"], "bot *** ***", (S,)),
    (["bot", f"dop_v1_{S * 3}", f"hf_{S * 3}"], "bot *** ***", (S,)),
    (["bot", f"SG.{S}.{S * 2}", f"shpat_{S * 3}"], "bot *** ***", (S,)),
    (["x", f"-----BEGIN EC KEY-----\n{S}\n{S}\n-----END EC KEY-----"], "x -----BEGIN EC KEY-----***-----END EC KEY-----", (S,)),
    (["ruby", "-e", f'S.new(:password => "{S}")'], "ruby -e S.new(:password => ***)", (S,)),
    (["logstash", "-e", f'password => "{S}"'], "logstash -e password => ***", (S,)),
    (["curl", "-d", f'{{"a":"{{\\"password\\":\\"{S}\\"}}"}}'], 'curl -d {"a":"{\\"password\\":***}"}', (S,)),
    (["redis-server", "--user", "default", "on", f">{S}"], "redis-server --user default on >***", (S,)),
    (["surreal", "start", "-u", "root", "-p", S], "surreal start -u root -p ***", (S,)),
    (["dolt", "sql-server", "-u", "me", "-p", S], "dolt sql-server -u me -p ***", (S,)),
    (["sftpgo", "portable", "-u", "me", "-p", S], "sftpgo portable -u me -p ***", (S,)),
    (["transmission-daemon", "-u", "me", "-v", S], "transmission-daemon -u me -v ***", (S,)),
    (["transmission-remote", "-n", f"me:{S}"], "transmission-remote -n ***", (S,)),
    (["miniserve", "-a", f"me:{S}", "."], "miniserve -a *** .", (S,)),
    (["curl", "-sSu", f"me:{S}", "http://h/"], "curl -sSu me:*** http://h/", (S,)),
    (["curl", "-u", f"{S}:", "http://h/"], "curl -u ***: http://h/", (S,)),
    (["curl", f"-su{S}:"], "curl -su***:", (S,)),
    (["app", "--dbpw", S, f"--pswd={S}", f"--rootpw={S}"], "app --dbpw *** --pswd=*** --rootpw=***", (S,)),
    (["pip", f"git+https://{S}@github.com/a/b"], "pip git+https://***@github.com/a/b", (S,)),
    (["git", f"https://{S}:x-oauth-basic@github.com/a"], "git https://***@github.com/a", (S,)),
    (["env", "A=1", f"foo={S}", "node"], "env A=1 foo=*** node", (S,)),
    (["env", "-i", f"foo={S}", "node"], "env -i foo=*** node", (S,)),
    (["env", "-u", "HOME", f"foo={S}", "node"], "env -u HOME foo=*** node", (S,)),
    (["cross-env", f"foo={S}", "node"], "cross-env foo=*** node", (S,)),
    (["sudo", "-u", "me", f"foo={S}", "node"], "sudo -u me foo=*** node", (S,)),
    (["sh", "-c", f'PASSWORD=$(printf %s "{S}") node'], "sh -c PASSWORD=*** node", (S,)),
    (["sh", "-c", f'PASSWORD="$(printf %s "a {S}")" node'], "sh -c PASSWORD=*** node", (S,)),
    (["sh", "-c", f'PASSWORD=$(a $(b $(c ")") {S}) {S}) node'], "sh -c PASSWORD=*** node", (S,)),
    (["sh", "-c", f'PASSWORD=`printf %s "{S}"` node'], "sh -c PASSWORD=*** node", (S,)),
    (["sh", "-c", f"DB_PASSWORD+={S} node"], "sh -c DB_PASSWORD+=*** node", (S,)),
    (["fish", "-c", f"set -x DB_PASSWORD {S} ; node"], "fish -c set -x DB_PASSWORD *** ; node", (S,)),
    (["csh", "-c", f"setenv DB_URI {S} ; node"], "csh -c setenv DB_URI *** ; node", (S,)),
    (["aws", "configure", "set", "aws_secret_access_key", S], "aws configure set aws_secret_access_key ***", (S,)),
    (["redis-cli", "AUTH", "me", S], "redis-cli AUTH *** ***", (S,)),
    (["psql", "-c", f"ALTER USER u WITH PASSWORD '{S} y'"], "psql -c ALTER USER u WITH PASSWORD ***", (S,)),
    (["mysql", "-e", f"CREATE USER u IDENTIFIED BY '{S}'"], "mysql -e CREATE USER u IDENTIFIED BY ***", (S,)),
    (["mysql", "-e", f"SET PASSWORD FOR u = '{S}'"], "mysql -e SET PASSWORD FOR u = ***", (S,)),
    (["curl", "-d", f"<password>{S}</password>"], "curl -d <password>***</password>", (S,)),
    (["curl", f"http://h/?q=%22password%22%3A%22{S}%22"], "curl http://h/?q=%22password%22%3A***", (S,)),
    (["openssl", "enc", "-k", S, "-K", S], "openssl enc -k *** -K ***", (S,)),
    (["ssh-keygen", "-N", S, "-f", "k"], "ssh-keygen -N *** -f k", (S,)),
    (["sqlplus", f"me/{S}@db"], "sqlplus me/***", (S,)),
    (["vault", "login", S], "vault login ***", (S,)),
    (["curl", f"https://api.telegram.org/bot123:{S}/getMe"], "curl https://api.telegram.org/bot***", (S,)),
    (["curl", f"https://hooks.slack.com/services/T0/B0/{S}"], "curl https://hooks.slack.com/services/***", (S,)),
    (["curl", f"https://discord.com/api/webhooks/12/{S}"], "curl https://discord.com/api/webhooks/***", (S,)),
    (["bot", f"nvapi-{S}", f"lsv2_pt_{S}_{S}", f"figd_{S}"], "bot *** *** ***", (S,)),
    (["bot", f"dapi{'0a1b' * 8}", f"key-{'0a1b' * 8}"], "bot *** ***", ("0a1b" * 8,)),
    (["bot", f"EAAC{S * 2}"], "bot ***", (S,)),
    (["http", "-a", f"me:{S}", "h"], "http -a *** h", (S,)),
    (["app", f"ws://{S}@h/"], "app ws://***@h/", (S,)),
    (["sh", "-c", f"env A=1 'foo={S}' node"], "sh -c env A=1 'foo=***' node", (S,)),
    (["env", "--unset=A", f"foo={S}", "node"], "env --unset=A foo=*** node", (S,)),
    (["sh", "-c", f'app --password "`printf %s "a {S}"`" n'], "sh -c app --password *** n", (S,)),
    (["fish", "-c", f"set --export --global DB_URI {S}"], "fish -c set --export --global DB_URI ***", (S,)),
    (["npm", "config", "set", "//r/:_authToken", S], "npm config set //r/:_authToken ***", (S,)),
    (["mysql", "-e", f"IDENTIFIED BY PASSWORD '{S}'"], "mysql -e IDENTIFIED BY PASSWORD ***", (S,)),
    (["psql", "-c", f"ALTER USER u PASSWORD E'{S}'"], "psql -c ALTER USER u PASSWORD ***", (S,)),
    (["x", f"<password><![CDATA[{S}]]></password>"], "x <password><![CDATA[***</password>", (S,)),
    (["x", f'<add key="password" value="{S}"/>'], "x <add key=*** value=***", (S,)),
    (["x", f"<add name='dbPassword' value='{S}'/>"], "x <add name='dbPassword' value=***", (S,)),
    (["sh", "-c", f"CFLAGS='-O2 -DAPI_KEY={S}' make"], "sh -c CFLAGS='-O2 -DAPI_KEY=***' make", (S,)),
    (["openssl", "dgst", "-hmac", S], "openssl dgst -hmac ***", (S,)),
    (["vault", "login", "-no-print", S], "vault login -no-print ***", (S,)),
    (["make", f"password?={S}", f"password:={S}"], "make password?=*** password:=***", (S,)),
]  # fmt: skip

HARMLESS = [
    "node server.js --port 3000",
    "PORT=3000 HOST=0.0.0.0 NODE_ENV=development node server.js",
    "npm run dev -- --host 127.0.0.1 --port=5173",
    "/usr/local/bin/node /work/node_modules/.bin/vite --strictPort",
    "node /x/node_modules/@angular/cli/bin/ng.js serve --open=false",
    "next-server (v14.2.3)",
    "python3 -m http.server 8000 --bind 127.0.0.1",
    "uvicorn app.main:app --reload --host 0.0.0.0 --port 8000 --workers 4",
    "gunicorn: master [shop.wsgi:application]",
    "/usr/bin/python -u manage.py runserver 0.0.0.0:8000",
    "flask --app shop --debug run -p 5000",
    "celery -A shop flower --port=5555 --broker=redis://redis:6379/0",
    "jupyter-lab --ip=0.0.0.0 --no-browser --notebook-dir=/work",
    "puma 6.4.0 (tcp://0.0.0.0:3000) [shop]",
    "ruby bin/rails server -b 0.0.0.0 -p 3000 -e development",
    "php -S localhost:8000 -t public public/index.php",
    "java -Xmx512m -Dserver.port=8080 -cp /app/classes:/app/lib/* com.example.Main",
    "dotnet run --urls=http://localhost:5000 --no-launch-profile",
    "/go/bin/dlv --listen=:2345 --headless=true --api-version=2 exec ./server",
    "./target/debug/server --listen [::]:8080 --log-level debug",
    "nginx: master process nginx -g daemon off;",
    "postgres -D /var/lib/postgresql/data -c config_file=/etc/postgresql.conf",
    "postgres: app shop 172.18.0.3(51234) idle",
    "mysqld --port=3306 --datadir=/var/lib/mysql --skip-name-resolve",
    "redis-server *:6379",
    "mongod --bind_ip_all --dbpath /data/db -f /etc/mongod.conf",
    "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups",
    "socat TCP-LISTEN:9000,fork,reuseaddr TCP:db:5432",
    "docker run -u 1000:1000 -p 3000:3000 -v /a:/b nginx:1.25@sha256:abcdef0123",
    "vite --proxy http://localhost:5173/@vite/client",
    "npx http-server -p 8080 -c-1 --cors",
    "npm install react@npm:preact@10.1.2 https://github.com/a/b.git",
    "ssh -N -L 5432:localhost:5432 git@github.com",
    "node passport.js:3000 --author me --monkey 1 --bypass all",
    "vllm serve --max-tokens 4096 --tokenizer mistral --tensor-parallel-size 2",
    "sh -c TZ=UTC LC_ALL=C.UTF-8 PYTHONPATH=/work DEBUG=app:* FOO_PORT=3001 ENABLE_X=true make serve",
    "npm_config_registry=http://registry:4873 verdaccio sk-learn-server",
    "kube-apiserver --authorization-mode=RBAC --secure-port=6443",
    "esbuild --serve=0.0.0.0:8000 --define:process.env=1",
    "webpack-dev-server --env production --mode=development",
    "webpack --env target=web",
    "app --ssh-key ~/.ssh/id_ed25519",
    "sudo -u me node server.js",
    "bash -c set -ex npm start",
    "make run ARGS=--debug",
    "code-server --auth none --bind-addr 127.0.0.1:8080",
    "text-generation-launcher --max-input-tokens 1024 --max-total-tokens 2048",
    "app --tokens-limit 5 --key-bindings vim",
    "node server.js --key ./certs/dev.key --ssl-key certs/key.pem --key=key.pem",
    "mongod --keyFile /etc/mongo/key --bind_ip_all",
    "POSTGRES_PASSWORD_FILE=/run/secrets/db postgres",
    "openssl req -newkey rsa:2048 -keyout k.pem",
    "code-server --auth password --bind-addr 127.0.0.1:8080",
    "sh -c MAX_TOKENS=4096 CFLAGS=-O2 DB_POOL_MAX=20 make serve",
]


@pytest.mark.parametrize(("arguments", "shown", "secrets"), SECRETS, ids=lambda value: str(value)[:40])
def test_secrets_are_hidden_and_the_rest_is_shown(arguments: list[str], shown: str, secrets: tuple[str, ...]) -> None:
    assert mask_command_line("\0".join(arguments)) == shown
    process = parse_process("\0".join(arguments).encode())
    assert process is not None
    assert process.shown == shown
    assert mask_command_line(shown) == shown, "an event is masked once more"


@pytest.mark.parametrize(
    ("arguments", "shown", "secrets"),
    [row for row in SECRETS if not any(" " in argument or "\n" in argument for argument in row[0])],
    ids=lambda value: str(value)[:40],
)
def test_secrets_of_one_word_are_hidden_where_arguments_are_not_known(
    arguments: list[str], shown: str, secrets: tuple[str, ...]
) -> None:
    assert mask_command_line(" ".join(arguments)) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_command_lines_are_shown_whole(text: str) -> None:
    assert mask_command_line(text) == text
    assert mask_command_line(text.replace(" ", "\0")) == text


def parts_of(secrets: tuple[str, ...]) -> set[str]:
    return {secret[at : at + 4] for secret in secrets for at in range(len(secret) - 3)}


@pytest.mark.parametrize(("arguments", "shown", "secrets"), SECRETS, ids=lambda value: str(value)[:40])
def test_no_part_of_a_secret_shows_wherever_the_command_line_is_cut(
    arguments: list[str], shown: str, secrets: tuple[str, ...]
) -> None:
    """By the agent after 1,024 bytes, by the watcher after 768, and at 200 characters when it is shown."""
    whole = "\0".join(arguments)
    parts = parts_of(tuple(secret for secret in secrets if len(secret) >= 8))
    for at in range(1, len(whole)):
        seen = mask_command_line(whole[:at], cut=True)
        assert not [part for part in parts if part in seen], (whole[:at], seen)
    for padding in range(MAX_COMMAND_LINE - len(whole), MAX_COMMAND_LINE):
        seen = mask_command_line(f"{'x' * max(padding, 0)}\0{whole}")
        assert not [part for part in parts if part in seen], seen
        assert len(seen) <= MAX_COMMAND_LINE


@pytest.mark.parametrize("length", [MAX_SHELL_COMMAND, 1024])
def test_a_command_line_that_the_lane_has_cut_ends_with_a_whole_word(length: int) -> None:
    raw = b"psql\0" + b"x" * (length - 60) + b"\0postgres://u:" + b"hunter2" * 20
    process = parse_process(raw[:length])
    assert process is not None
    assert "hunter" in process.command_line  # what expressions are matched with
    assert "hunter" not in process.shown
    assert parse_process(b"psql\0x") == ("psql x", "psql x")


@given(
    st.text(st.one_of(st.sampled_from("\0\x1b[]m\x07'\" -=:/@"), st.characters())),
    st.sampled_from(["--password=", "TOKEN=", "--api-key ", "--api-key\0", "FOO_BAR=", "\0-H\0Authorization: Bearer ", "x://u:p@"]),
    st.sampled_from(["", "@host", "\0--port", " y"]),
)  # fmt: skip
def test_secret_is_hidden_whatever_stands_around_it(before: str, name: str, after: str) -> None:
    if name == "x://u:p@":
        after = "@host"
    shown = mask_command_line(f"{before} {name}hunter2{after}")
    assert "hunter2" not in shown
    assert len(shown) <= MAX_COMMAND_LINE
    assert shown.isprintable()


HOSTILE = (
    *("-", "a-", "://a:", "@", "://u:p@", '"', "'", "\\", "key=", "A=", "PORT=", "A=1 ", "--key ", "--key\0", "env a="),
    *(
        "Cookie: ",
        "bearer ",
        "-----BEGIN KEY-----",
        "ghp_",
        "sk-",
        "-p",
        "A=$(",
        "A=`",
        'A="$(',
        '"$(',
        "<key>",
        "<key ",
    ),
    *('key=\\"', "env -a ", "env -a b ", "env a=1 ", "sudo a", "set -x A ", "key => ", "password '", "curl -u"),
    *("redis-cli AUTH ", "--key a.pem ", "--key=/", "--key-file /", "hooks.slack.com/a/", "sqlplus a/", "\\"),
    *("mysql -p", "-u a:", "\0", "\x1b]", " "),
)


def cost_s(text: str) -> float:
    best_s = 1e9
    for _ in range(5):
        began_s = time.process_time()
        mask_command_line(text)
        best_s = min(best_s, time.process_time() - began_s)
    return best_s


@pytest.mark.parametrize("piece", HOSTILE)
def test_the_cost_is_linear(piece: str) -> None:
    """Sixteen times the length would cost 256 times as much, were it the square."""
    short, long = (cost_s((piece * length)[:length]) for length in (256, 4096))
    assert long < 80 * max(short, 5e-5), (short, long)


def test_faults_do_not_tell_command_lines() -> None:
    """What a fault is about stands in its text, and so in the log."""
    process = parse_process(b"srv\0--token=hunter2")
    for one in (process, Process(7, 12, b"srv\0--token=hunter2"), Owner(7, 12, b"srv\0--token=hunter2")):
        assert "hunter2" not in repr(one)
        assert "hunter2" not in f"{(one, 1)!r}"


def test_the_owner_of_a_host_port_is_masked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has named itself has its whole command line for a name."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(psutil.Process, "name", lambda _self: "server --token=hunter2 \x1b[2J")
        assert owners_of_ports({port}) == {port: f"server --token=*** (pid {os.getpid()})"}
