-- What is forwarded, from PORT_EVENT objects: values in, values out, nothing of Neovim's state.
--
-- A table of rows by key. The key is the forward's `id`, or, for a port without one (failed, published, ignored), its place.
-- The same rules, as a table and in Python: docs/editors.md.

local M = {}

-- A forward that was gone for less than this is no news: its server, or the supervisor, was restarted.
local NEWS_AFTER_MS = 10000

local Ports = {}
Ports.__index = Ports

function M.new()
  -- `known`, by id: true while a forward is up as far as anybody was told, then the time of its end. It outlives a
  -- restart of the supervisor, which tells of each forward again.
  return setmetatable({ rows = {}, known = {}, seq = nil }, Ports)
end

local function place_of(event)
  local host = event.containerHost or ''
  if host:find(':', 1, true) or host:find('^[%d.]+$') then
    host = '' -- an address of the container itself: it may be another one next time
  end
  return table.concat({ event.containerId or '', event.transport or '', host, event.port }, '|')
end

-- A new follower: it begins with a replay of all that is up.
function Ports:clear()
  self.rows, self.seq = {}, nil
end

function Ports:_forget_container(container_id)
  for key, row in pairs(self.rows) do
    if row.containerId == container_id then
      self.rows[key] = nil
    end
  end
end

-- Whether nothing was missed before this event. A replay carries the number of the last event. False: follow anew.
function Ports:in_order(event)
  local expected = self.seq
  return expected == nil or event.seq == expected + 1 or (event.replay == true and event.seq == expected)
end

function Ports:_is_news(event, now_ms)
  local known = self.known[event.id]
  return event.event == 'forwarded' and not event.replay and known ~= true and (not known or now_ms - known > NEWS_AFTER_MS)
end

-- Take in one event; whether it is news that a person may want to hear (a forward came up that nobody was told of).
function Ports:apply(event, now_ms)
  self.seq = event.seq
  if event.port == nil then -- about a session
    if event.event == 'attached' or event.event == 'detached' then
      -- What is still there is told again after `attached`: it comes first also from a supervisor that takes over from
      -- one that was killed, and so could not tell of the ends.
      self:_forget_container(event.containerId)
    end
    return false
  end
  local key, place = event.id or place_of(event), place_of(event)
  if event.status == nil then -- `unforwarded`
    self.rows[key] = nil
    self.known[key] = self.known[key] and now_ms or nil
    return false
  end
  self.rows[key] = event
  if not event.id then
    return false
  end
  self.rows[place] = nil -- it had failed before, without an id
  local news = self:_is_news(event, now_ms)
  if event.status == 'active' then
    self.known[key] = true
  elseif event.status == 'waiting' and self.known[key] == true then
    self.known[key] = now_ms
  end
  return news
end

-- The rows in the order in which they are shown.
function Ports:sorted()
  local rows = {}
  for _, row in pairs(self.rows) do
    rows[#rows + 1] = row
  end
  table.sort(rows, function(a, b)
    for _, name in ipairs({ 'containerName', 'service', 'port', 'transport', 'id' }) do
      local x, y = a[name] or '', b[name] or ''
      if x ~= y then
        return x < y
      end
    end
    return false
  end)
  return rows
end

return M
