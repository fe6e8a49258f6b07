// Show exact times in the reader's time zone. Without this script, the server chooses the zone.
for (const element of document.querySelectorAll(".user-sessions time")) {
  const moment = new Date(element.dateTime);
  const options = { dateStyle: "full", timeStyle: "long" };
  try {
    element.title = moment.toLocaleString(document.documentElement.lang || undefined, options);
  } catch {
    // The page's language tag is invalid.
    element.title = moment.toLocaleString(undefined, options);
  }
}
