// The exact times in the reader's own time zone. Without this they are in the one of the server.
for (const element of document.querySelectorAll(".user-sessions time")) {
  const moment = new Date(element.dateTime);
  const options = { dateStyle: "full", timeStyle: "long" };
  try {
    element.title = moment.toLocaleString(document.documentElement.lang || undefined, options);
  } catch {
    // What the page says of its language is none.
    element.title = moment.toLocaleString(undefined, options);
  }
}
