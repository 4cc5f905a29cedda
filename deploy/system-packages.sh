#!/bin/sh
# System packages that parts of Confed use, for Debian and Ubuntu; run as root.
#   pango       sets the text of `confed audit report --pdf` (WeasyPrint)
#   fonts       one family with the letters that a report uses
#   chromium    shows the reports in the tests, which are skipped without it
set -eu
apt-get update
apt-get install --yes --no-install-recommends \
    libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-dejavu-core
if [ "${1:-}" = "--tests" ]; then
    apt-get install --yes --no-install-recommends chromium poppler-utils
fi
