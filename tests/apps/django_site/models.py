"""What the guest book remembers."""

from django.db import models


class Guest(models.Model):
    """One entry."""

    name = models.CharField(max_length=100, unique=True)
    pid = models.IntegerField()
    thread = models.BigIntegerField()

    def __str__(self):
        return self.name


class Tally(models.Model):
    """A number that many requests raise at once."""

    total = models.IntegerField(default=0)

    def __str__(self):
        return str(self.total)
