"""A small notebook in Flask as a real one would be: sessions, uploads and downloads, streams, error pages, a counter.

$FOLDER is where its files lie, $SECRET_KEY what its sessions are signed with.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from flask import (
    Flask,
    Response,
    abort,
    jsonify,
    make_response,
    redirect,
    render_template_string,
    request,
    send_from_directory,
    session,
    stream_with_context,
    url_for,
)
from gates import FOLDER, leave_note, pass_gate
from werkzeug.utils import secure_filename

from zcluster import Counter

PAGE = "<!doctype html><title>{{ title }}</title><h1>{{ title }}</h1>"
FILES = FOLDER / "files"

app = Flask(__name__)
app.config.update(SECRET_KEY=os.environ["SECRET_KEY"], MAX_CONTENT_LENGTH=8 << 20)
visits = Counter("visits")


# ---- pages and sessions --------------------------------------------------------------------------------------------
@app.get("/")
def index():
    return render_template_string(PAGE, title="Notebook & more")


@app.get("/who")
def who():
    return jsonify(pid=os.getpid(), multithread=request.environ["wsgi.multithread"])


@app.get("/visits")
def visited():
    session["visits"] = session.get("visits", 0) + 1
    return jsonify(visits=session["visits"], pid=os.getpid())


@app.post("/login")
def login():
    session["name"] = request.form["name"]  # 400 when it is missing
    return redirect(url_for("me"), code=303)


@app.get("/me")
def me():
    if "name" not in session:
        abort(403)
    return jsonify(name=session["name"])


@app.get("/logout")
def logout():
    session.clear()
    response = redirect(url_for("index"))
    response.set_cookie("seen", "yes, and ü", max_age=60, httponly=True, samesite="Lax")
    return response


@app.get("/count")
def count():
    return str(visits.incr())


# ---- up and down ---------------------------------------------------------------------------------------------------
def describe(name, data):
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@app.post("/files")
def upload():
    found = []
    for file in request.files.getlist("file"):
        name = secure_filename(file.filename)
        file.save(FILES / name)
        found.append(describe(name, (FILES / name).read_bytes()))
    return jsonify(files=found, form=request.form.to_dict()), 201


@app.put("/files/<name>")
def put(name):
    """Take the body as it comes; the file appears when all of it is there."""
    with tempfile.NamedTemporaryFile(dir=FOLDER, prefix="part-", delete=False) as part:
        try:
            while piece := request.stream.read(65536):
                part.write(piece)
        except BaseException:
            Path(part.name).unlink()
            raise
    Path(part.name).rename(FILES / name)
    return jsonify(describe(name, (FILES / name).read_bytes())), 201


@app.get("/files/<name>")
def download(name):
    return send_from_directory(FILES, name, as_attachment=True, max_age=60)


@app.route("/json", methods=["GET", "POST"])
def large_json():
    if request.method == "POST":
        return jsonify(request.get_json())
    return jsonify([{"id": number, "text": "ü" * 20} for number in range(int(request.args["n"]))])


@app.get("/etag")
def etag():
    response = make_response("always the same")
    response.add_etag()
    return response.make_conditional(request)


# ---- piece by piece, and slowly ------------------------------------------------------------------------------------
@app.get("/stream/<gate>")
def stream(gate):
    session["streamed"] = gate

    @stream_with_context
    def pieces():
        try:
            yield f"first of {request.args['name']}\n"
            pass_gate(gate)
            yield f"last of {request.args['name']}\n"
        finally:
            leave_note(gate, request.args["name"])

    return Response(pieces(), mimetype="text/plain")


@app.get("/endless/<name>")
def endless(name):
    def pieces():
        try:
            while True:
                yield b"x" * 65536
        finally:
            leave_note(name, "closed")

    return Response(pieces(), mimetype="application/octet-stream")


@app.get("/torn")
def torn():
    def pieces():
        yield "first\n"
        raise RuntimeError("the pen broke")

    return Response(pieces(), mimetype="text/plain")


@app.get("/wait/<gate>")
def wait(gate):
    leave_note(gate, str(os.getpid()))
    pass_gate(gate)
    return "passed"


# ---- what goes wrong -----------------------------------------------------------------------------------------------
@app.get("/crash")
def crash():
    raise RuntimeError("the notebook is on fire")


@app.errorhandler(404)
def nothing_here(error):
    return render_template_string(PAGE, title="No such page"), 404


@app.errorhandler(500)
def sorry(error):
    return render_template_string(PAGE, title="Something broke"), 500
