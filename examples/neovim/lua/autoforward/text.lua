-- Text of a container, made fit to be shown: labels and process names are chosen by whoever made the image.

local M = {}

-- Control characters (C0, DEL, C1), line separators, and what turns the direction of writing, as escapes.
function M.plain(text)
  text = tostring(text):gsub('[%z\1-\31\127\\]', function(char)
    if char == '\\' then
      return '\\\\'
    end
    return ('\\x%02x'):format(char:byte())
  end)
  text = text:gsub('\194([\128-\159])', function(char)
    return ('\\x%02x'):format(char:byte())
  end)
  text = text:gsub('\226\128([\142\143\168-\174])', function(char)
    return ('\\u%04x'):format(0x2000 + char:byte() - 128)
  end)
  return (text:gsub('\226\129([\166-\169])', function(char)
    return ('\\u%04x'):format(0x2040 + char:byte() - 128)
  end))
end

-- Where a row is reached: its URL, or for UDP its address.
function M.where(row)
  if row.url then
    return M.plain(row.url)
  end
  if row.localPort then
    return M.plain(('%s:%d/%s'):format(row.hostIp or 'localhost', row.localPort, row.transport or 'tcp'))
  end
  return '-'
end

return M
