"""The pages of the guest book."""

import hashlib
import json
import os
import tempfile
import threading
from pathlib import Path

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F
from django.http import (
    FileResponse,
    Http404,
    HttpResponse,
    HttpResponseNotModified,
    JsonResponse,
    StreamingHttpResponse,
)
from django.middleware.csrf import get_token
from django.shortcuts import redirect, render
from django.utils.decorators import method_decorator
from django.utils.http import http_date
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.static import was_modified_since
from gates import leave_note, pass_gate

from .models import Guest, Tally

FILES = settings.FOLDER / "files"


# ---- pages and sessions --------------------------------------------------------------------------------------------
def index(request):
    return render(request, "index.html", {"guests": Guest.objects.filter(name__startswith="page")})


def who(request):
    return JsonResponse({"pid": os.getpid(), "multithread": request.META["wsgi.multithread"]})


def token(request):
    return JsonResponse({"token": get_token(request)})


def visits(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"], "pid": os.getpid()})


def leave(request):
    request.session.flush()
    response = redirect("/")
    response.set_cookie("seen", "yes", max_age=60, httponly=True, samesite="Lax")
    return response


# ---- the database --------------------------------------------------------------------------------------------------
@csrf_exempt
def guests(request):
    """Add one; beside others if the test wants it, all of them inside their views at once."""
    if request.method == "POST":
        Guest.objects.create(name=request.POST["name"], pid=os.getpid(), thread=threading.get_ident())
        if gate := request.POST.get("gate"):
            leave_note(request.POST["name"], str(threading.get_ident()))
            pass_gate(gate)
    found = Guest.objects.filter(name__startswith=request.GET.get("like", "")).values("name", "pid", "thread")
    return JsonResponse({"guests": list(found)}, status=201 if request.method == "POST" else 200)


@csrf_exempt
def tally(request):
    """Read and write in one transaction; what one request wrote the next one reads, wherever it runs."""
    with transaction.atomic():
        row, _ = Tally.objects.select_for_update().get_or_create(pk=1)
        Tally.objects.filter(pk=row.pk).update(total=F("total") + 1)
        row.refresh_from_db()
    return HttpResponse(str(row.total))


def database(request):
    """Whether this thread had a connection open before it asked for anything."""
    was_open = connection.connection is not None
    Guest.objects.count()
    return JsonResponse({"was_open": was_open, "thread": threading.get_ident()})


# ---- up and down ---------------------------------------------------------------------------------------------------
def describe(name):
    data = (FILES / name).read_bytes()
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def upload(request):
    """A form with files; needs its CSRF token."""
    found = []
    for file in request.FILES.getlist("file"):
        with (FILES / file.name).open("wb") as out:
            for piece in file.chunks():
                out.write(piece)
        found.append(describe(file.name))
    return JsonResponse({"files": found, "form": request.POST.dict()}, status=201)


@method_decorator(csrf_exempt, name="dispatch")
class FileView(View):
    """One file, put and fetched as it is."""

    def put(self, request, name):
        """Take the body as it comes; the file appears when all of it is there."""
        with tempfile.NamedTemporaryFile(dir=settings.FOLDER, prefix="part-", delete=False) as part:
            try:
                while piece := request.read(65536):
                    part.write(piece)
            except BaseException:
                Path(part.name).unlink()
                raise
        Path(part.name).rename(FILES / name)
        return JsonResponse(describe(name), status=201)

    def get(self, request, name):
        path = FILES / name
        if not path.exists():
            raise Http404(name)
        modified = path.stat().st_mtime
        # As Django's own static view: the conditional middleware would drop an open FileResponse without closing it.
        if not was_modified_since(request.headers.get("If-Modified-Since"), modified):
            return HttpResponseNotModified()
        Guest.objects.count()  # a database connection that has to be given back when the file has been sent
        response = FileResponse(path.open("rb"), as_attachment=True)
        response["Last-Modified"] = http_date(modified)
        return response


@csrf_exempt
def large_json(request):
    if request.method == "POST":
        return JsonResponse(json.loads(request.body), safe=False)
    rows = [{"id": number, "text": "ü" * 20} for number in range(int(request.GET["n"]))]
    return JsonResponse(rows, safe=False)


# ---- piece by piece, and slowly ------------------------------------------------------------------------------------
def stream(request, gate):
    def pieces():
        try:
            yield f"first of {request.GET['name']}\n"
            pass_gate(gate)
            yield f"last of {Guest.objects.filter(name='nobody').count()}\n"
        finally:
            leave_note(gate, request.GET["name"])

    return StreamingHttpResponse(pieces(), content_type="text/plain")


def endless(request, name):
    def pieces():
        try:
            while True:
                yield b"x" * 65536
        finally:
            leave_note(name, "closed")

    return StreamingHttpResponse(pieces(), content_type="application/octet-stream")


def torn(request):
    def pieces():
        yield "first\n"
        raise RuntimeError("the pen broke")

    return StreamingHttpResponse(pieces(), content_type="text/plain")


def wait(request, gate):
    leave_note(gate, str(os.getpid()))
    pass_gate(gate)
    return HttpResponse("passed")


# ---- what goes wrong -----------------------------------------------------------------------------------------------
def crash(request):
    raise RuntimeError("the guest book is on fire")
