-- For wrk: each request carries the next of the cookies in a file, which has one on each line.

local requests, last = {}, 0

function init(args)
  for cookie in io.lines(args[1]) do
    wrk.headers["Cookie"] = cookie
    requests[#requests + 1] = wrk.format()
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end
