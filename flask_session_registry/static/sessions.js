// The exact times in the reader's own time zone. Without this they are in the one of the server.
for (const element of document.querySelectorAll(".user-sessions time")) {
  const options = { dateStyle: "full", timeStyle: "long" };
  element.title = new Date(element.dateTime).toLocaleString(document.documentElement.lang || undefined, options);
}
