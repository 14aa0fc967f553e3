"""Which view answers which path."""

from django.urls import path

from . import views

urlpatterns = [
    path("", views.index),
    path("who", views.who),
    path("token", views.token),
    path("visits", views.visits),
    path("leave", views.leave),
    path("guests", views.guests),
    path("tally", views.tally),
    path("database", views.database),
    path("files", views.upload),
    path("files/<str:name>", views.FileView.as_view()),
    path("json", views.large_json),
    path("stream/<str:gate>", views.stream),
    path("endless/<str:name>", views.endless),
    path("torn", views.torn),
    path("wait/<str:gate>", views.wait),
    path("crash", views.crash),
    path("slashed/", views.index),
]
